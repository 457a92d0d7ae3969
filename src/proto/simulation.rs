//! Both halves of a session against each other in simulated time.
