"""Searches for the best scikit-learn model and parameters, on one core, all cores or a cluster."""
