"""mach's command-line tools. Each command is one module; entry points name its `main`."""
