"""What can be seen of a supervisor and its workers while they run."""
