"""First contact with an unknown GPU machine (`hyimage first-contact`)."""
