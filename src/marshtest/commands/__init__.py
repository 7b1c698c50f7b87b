"""The functions behind the command line: one a command."""
