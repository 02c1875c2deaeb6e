"""AdapterHub's methods, one file for each of its families."""
