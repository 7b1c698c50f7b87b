"""Tables, figures and pages, all drawn from rows."""
