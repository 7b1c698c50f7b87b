"""The forensic kit: dose and test a pipeline that is not ours."""
