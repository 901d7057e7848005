"""What a run leaves behind: records, checkpoints, metrics; and reading it back."""
