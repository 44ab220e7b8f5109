"""Times of queries and uploads as a user of Python and of the command line sees them. See bench/seat.sh."""
