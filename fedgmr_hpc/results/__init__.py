"""What is made of finished result files: summaries, plots, checks, exports."""
