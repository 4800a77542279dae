"""Folders of WebDataset shards: written, indexed, read from disks and object stores."""
