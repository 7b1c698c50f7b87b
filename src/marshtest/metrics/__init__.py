"""What is measured on a model. Larger `dependence` means more poison left; every mean has its error."""
