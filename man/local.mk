# Manual pages, and the example of lorad.conf that one of them names.
dist_man_MANS += man/lorad.8 man/lorad.conf.5 man/loractl.1 man/lorabench.1 man/libloraclient.3
dist_doc_DATA += man/lorad.conf.example
