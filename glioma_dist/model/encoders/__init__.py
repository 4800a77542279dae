"""The encoders: one file is one family."""
