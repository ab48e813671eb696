"""Behind `simulate`: what a comparison of policies looks like."""
