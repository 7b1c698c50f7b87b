"""What rows say: summary, comparison, leaderboard."""
