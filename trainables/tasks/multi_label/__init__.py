"""Any number of classes for each row."""
