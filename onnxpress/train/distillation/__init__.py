"""Training of one student towards one teacher."""
