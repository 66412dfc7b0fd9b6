//! Diagnostics for people: problems with file, line and field, collected so that one edit can fix all.
