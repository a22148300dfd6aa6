"""The machine: files, processes, threads, and runs that can be stopped and resumed."""
