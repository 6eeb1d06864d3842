"""What tables of labels hold: files, columns, cells, and the names of classes in them."""
