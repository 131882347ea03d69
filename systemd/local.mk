# Units, the user and the sockets' folder. They are off until an administrator enables them.
systemdsystemunit_DATA = systemd/lorad.service systemd/lorad.socket systemd/lorad-control.socket
CLEANFILES += systemd/lorad.service
dist_catalog_DATA = systemd/lorad.catalog
dist_doc_DATA += systemd/lorad-gpu.conf
EXTRA_DIST += systemd/lorad.service.in systemd/lorad.socket systemd/lorad-control.socket systemd/sysusers.conf \
	systemd/tmpfiles.conf

systemd/lorad.service: systemd/lorad.service.in Makefile
	$(AM_V_GEN)$(MKDIR_P) $(@D) && sed 's|@sbindir[@]|$(sbindir)|g' $(top_srcdir)/systemd/lorad.service.in >$@.tmp && mv $@.tmp $@

# sysusers.d and tmpfiles.d name a file after its package.
install-data-local: install-systemd-confs
install-systemd-confs:
	$(MKDIR_P) '$(DESTDIR)$(sysusersdir)' '$(DESTDIR)$(tmpfilesdir)'
	$(INSTALL_DATA) $(top_srcdir)/systemd/sysusers.conf '$(DESTDIR)$(sysusersdir)/lorad.conf'
	$(INSTALL_DATA) $(top_srcdir)/systemd/tmpfiles.conf '$(DESTDIR)$(tmpfilesdir)/lorad.conf'

uninstall-local: uninstall-systemd-confs
uninstall-systemd-confs:
	rm -f '$(DESTDIR)$(sysusersdir)/lorad.conf' '$(DESTDIR)$(tmpfilesdir)/lorad.conf'

.PHONY: install-systemd-confs uninstall-systemd-confs
