"""Result backends on our stores."""
