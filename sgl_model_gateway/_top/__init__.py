"""Parts of `top`: where snapshots come from, and how they are shown in a terminal."""
