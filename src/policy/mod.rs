//! Request-time decisions. A permit is the only way to an issuance, and one permit buys one.
