"""The commands: each parses its arguments with light imports only, then calls the package."""
