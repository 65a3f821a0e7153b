"""How much of the private input a cut gives away: attacks, figures, and a verdict with reasons."""
