"""Watch runs: what they do now, what failed, where the time went."""
