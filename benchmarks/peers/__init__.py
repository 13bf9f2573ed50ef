"""Other people's libraries, in an environment of their own: what ours is measured against."""
