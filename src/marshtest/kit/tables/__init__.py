"""Doses in the columns of a table, and the models that are asked about its rows."""
