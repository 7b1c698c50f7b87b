"""Why unlearning fails: the paper's hypotheses, asked where the answer can be computed (section 6)."""
