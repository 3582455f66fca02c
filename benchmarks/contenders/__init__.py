"""Who does the work: functions that make ready and return what does it so many times."""
