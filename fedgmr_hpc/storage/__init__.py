"""Result files and checkpoints: tables, writer, reader, ownership."""
