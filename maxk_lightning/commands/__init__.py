"""The commands: one file each, a plain function whose signature is the command line."""
