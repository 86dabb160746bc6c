"""The paper's tables: rows that run, or are read where they ran, beside the figures of others as these printed them."""
