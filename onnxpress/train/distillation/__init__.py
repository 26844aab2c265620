"""Training of a student towards a teacher."""
