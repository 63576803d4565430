"""ParZC: predictors of accuracy from the statistics of a table's nodes (Dong et al., AAAI 2025)."""
