//! Packets that reach the wrong thread.
