"""Live update: the session behind the control verbs, and the steps from freeze to hand-over."""
