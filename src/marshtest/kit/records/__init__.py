"""Text records on disk, in the layouts that fine-tuning pipelines read."""
