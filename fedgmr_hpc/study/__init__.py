"""What is made of runs: reports and plots from the store, never from the runtime."""
