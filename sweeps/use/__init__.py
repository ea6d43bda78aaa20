"""What becomes of trained models after the sweep."""
