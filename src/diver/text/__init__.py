"""Words about images: captions, features of both, the queries that join them, and texts that stand for a cluster."""
