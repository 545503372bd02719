"""What a prepared folder holds and how it was made: numbers, figures, and a page of both."""
