"""Run the real library's model, train it, fit the operator, and measure what growth preserved."""
