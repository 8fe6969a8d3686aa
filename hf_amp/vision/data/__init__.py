"""Which images and labels there are: data sets, their columns and splits, decoded pixels, normalisation."""
