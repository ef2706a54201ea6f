"""The command line: options to config to one call. `main` dispatches, each other file is one command."""
