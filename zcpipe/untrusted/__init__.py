"""Reading files that others made, of which nothing may be believed before it is checked: pickles run nothing here."""
