"""From a source's frame to the frame that is inspected."""
