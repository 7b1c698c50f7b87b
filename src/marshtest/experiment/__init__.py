"""One recipe at work: poison, train, unlearn, measure."""
