package personality

import "net/http"

// route is an endpoint of the Engine API.
type route struct {
	method, path string // the path without its version; {x} is one segment or, in an image's or plugin's name, several; {x...} is the rest
	// handler answers; nil: 501 with the endpoint's name.
	handler func(*Server, http.ResponseWriter, *http.Request) error
	// test is what proves the endpoint: test functions of this package and scripts of test/e2e/testdata ("volume_prune.txtar"). "": it is unsupported.
	test string
}

// routes is every endpoint of the Engine API, 1.24 to 1.51, as api/swagger.yaml and Moby's routers have them. doc/docker-api.md is this table in
// prose, and a test keeps the two the same: after a change run go test ./personality -run TestEndpointTable -update.
func routes() []route {
	return []route{
		// system
		{"HEAD", "/_ping", (*Server).ping, "TestPing"},
		{"GET", "/_ping", (*Server).ping, "TestPing system_ping.txtar"},
		{"GET", "/version", (*Server).version, "TestVersion system_version.txtar"},
		{"GET", "/info", (*Server).info, "TestInfo system_info.txtar"},
		{"GET", "/events", (*Server).eventStream, "TestEvents TestEventsAreStreamed system_events_live.txtar"},
		{"GET", "/system/df", (*Server).systemDF, "TestSystemDF system_df.txtar"},
		{"POST", "/auth", (*Server).login, "TestImagePull TestLogin system_login.txtar"},
		{"POST", "/session", nil, ""},
		{"POST", "/grpc", nil, ""},

		// containers
		{"POST", "/containers/create", (*Server).containerCreate, "TestContainerCreate volume_named_made_by_create.txtar container_refused_options.txtar"},
		{"GET", "/containers/json", (*Server).containerList, "TestContainerList container_ps.txtar"},
		{"GET", "/containers/{id}/json", (*Server).containerInspect, "TestContainerInspect container_inspect.txtar"},
		{"POST", "/containers/{id}/start", (*Server).containerStart, "TestContainerLife container_lifecycle.txtar container_start_twice.txtar container_restart_policy.txtar container_health.txtar"},
		{"POST", "/containers/{id}/stop", (*Server).containerStop, "TestContainerLife container_stop_timeout.txtar container_stop_signal.txtar"},
		{"POST", "/containers/{id}/restart", (*Server).containerRestart, "TestContainerLife container_restart.txtar"},
		{"POST", "/containers/{id}/kill", (*Server).containerKill, "TestContainerLife container_kill.txtar"},
		{"POST", "/containers/{id}/rename", (*Server).containerRename, "TestContainerLife container_rename.txtar"},
		{"POST", "/containers/{id}/wait", (*Server).containerWait, "TestContainerWait container_wait.txtar"},
		{"DELETE", "/containers/{id}", (*Server).containerRemove, "TestContainerLife container_rm_running.txtar volume_anonymous_rm.txtar"},
		{"POST", "/containers/prune", (*Server).containerPrune, "TestContainerPrune container_prune.txtar"},
		{"POST", "/containers/{id}/attach", (*Server).containerAttach, "TestContainerAttach attach_stdin.txtar attach_late.txtar"},
		{"GET", "/containers/{id}/attach/ws", nil, ""},
		{"POST", "/containers/{id}/resize", (*Server).containerResize, "TestContainerResize container_tty.txtar"},
		{"GET", "/containers/{id}/logs", (*Server).containerLogs, "TestContainerLogs logs_options.txtar logs_follow.txtar"},
		{"GET", "/containers/{id}/top", (*Server).containerTop, "TestContainerTop container_top.txtar"},
		{"GET", "/containers/{id}/stats", (*Server).containerStats, "TestContainerStats container_stats.txtar"},
		{"GET", "/containers/{id}/changes", (*Server).containerChanges, "TestContainerCommit container_diff.txtar"},
		{"GET", "/containers/{id}/export", (*Server).containerExport, "TestContainerCommit container_export.txtar"},
		{"HEAD", "/containers/{id}/archive", (*Server).containerArchiveStat, "TestContainerArchive container_cp_paths.txtar"},
		{"GET", "/containers/{id}/archive", (*Server).containerArchiveGet, "TestContainerArchive container_cp_out.txtar"},
		{"PUT", "/containers/{id}/archive", (*Server).containerArchivePut, "TestContainerArchive container_cp_in.txtar"},
		{"POST", "/containers/{id}/copy", nil, ""},
		{"POST", "/containers/{id}/update", (*Server).containerUpdate, "TestContainerUpdate container_update.txtar"},
		{"POST", "/containers/{id}/pause", (*Server).containerPause, "TestContainerPause container_pause.txtar"},
		{"POST", "/containers/{id}/unpause", (*Server).containerUnpause, "TestContainerPause container_pause.txtar"},
		{"GET", "/containers/{id}/checkpoints", nil, ""},
		{"POST", "/containers/{id}/checkpoints", nil, ""},
		{"DELETE", "/containers/{id}/checkpoints/{checkpoint}", nil, ""},

		// exec
		{"POST", "/containers/{id}/exec", (*Server).execCreate, "TestExec exec_runs.txtar"},
		{"POST", "/exec/{id}/start", (*Server).execStart, "TestExec exec_runs.txtar exec_tty.txtar"},
		{"POST", "/exec/{id}/resize", (*Server).execResize, "TestExecResize exec_tty.txtar"},
		{"GET", "/exec/{id}/json", (*Server).execInspect, "TestExec exec_inspect.txtar"},

		// images
		{"POST", "/images/create", (*Server).imageCreate, "TestImagePull TestImageImport image_pull.txtar image_import.txtar"},
		{"POST", "/images/load", (*Server).imageLoad, "TestImageLoad image_load_docker.txtar image_load_oci.txtar"},
		{"GET", "/images/json", (*Server).imageList, "TestImageList image_ls.txtar"},
		{"GET", "/images/{name}/json", (*Server).imageInspect, "TestImageInspect image_inspect.txtar"},
		{"GET", "/images/{name}/history", (*Server).imageHistory, "TestImageHistory image_history.txtar"},
		{"POST", "/images/{name}/tag", (*Server).imageTag, "TestImageTag image_tag.txtar"},
		{"DELETE", "/images/{name}", (*Server).imageRemove, "TestImageRemove image_rm_in_use.txtar"},
		{"POST", "/images/prune", (*Server).imagePrune, "TestImagePrune image_prune.txtar"},
		{"POST", "/images/{name}/push", (*Server).imagePush, "TestImagePush image_push.txtar"},
		{"GET", "/images/{name}/get", (*Server).imageSave, "TestImageSave image_save.txtar"},
		{"GET", "/images/get", (*Server).imageSave, "TestImageSave image_save.txtar"},
		{"GET", "/images/search", nil, ""},
		{"GET", "/images/{name}/attestations", nil, ""},
		{"GET", "/distribution/{name}/json", (*Server).distribution, "TestImagePush image_push.txtar"},
		{"POST", "/commit", (*Server).containerCommit, "TestContainerCommit container_commit.txtar"},
		{"POST", "/build", nil, ""},
		{"POST", "/build/prune", (*Server).buildPrune, "TestBuildPrune"},
		{"POST", "/build/cancel", nil, ""},

		// volumes
		{"POST", "/volumes/create", (*Server).volumeCreate, "TestVolumeCreate volume_create_again.txtar"},
		{"GET", "/volumes", (*Server).volumeList, "TestVolumeList volume_ls_filters.txtar"},
		{"GET", "/volumes/{name...}", (*Server).volumeInspect, "TestVolumeInspect volume_inspect.txtar"},
		{"DELETE", "/volumes/{name...}", (*Server).volumeRemove, "TestVolumeRemove volume_rm_referred.txtar"},
		{"POST", "/volumes/prune", (*Server).volumePrune, "TestVolumePrune volume_prune.txtar"},
		{"PUT", "/volumes/{name...}", (*Server).noSwarm, ""},

		// vch's own (doc/adr/0006)
		{"POST", "/vch/volumes/{name}/protect", (*Server).volumeProtect, "TestVolumeProtect volume_protect.txtar"},
		{"DELETE", "/vch/volumes/{name}/protect", (*Server).volumeProtect, "TestVolumeProtect volume_protect.txtar"},
		{"POST", "/vch/volumes/{name}/resize", (*Server).volumeResize, "TestVolumeResize volume_resize.txtar"},
		{"POST", "/vch/volumes/{name}/rename", (*Server).volumeRename, "TestVolumeRename volume_rename.txtar"},
		{"POST", "/vch/volumes/{name}/adopt", (*Server).volumeAdopt, "TestVolumeAdopt volume_nfs_adopt.txtar"},
		{"POST", "/vch/volumes/{name}/move", (*Server).volumeMove, "TestVolumeMove volume_move.txtar"},
		{"GET", "/vch/volumes/{name}/snapshots", (*Server).snapshotList, "TestVolumeSnapshots volume_snapshot.txtar"},
		{"POST", "/vch/volumes/{name}/snapshots", (*Server).snapshotCreate, "TestVolumeSnapshots volume_snapshot.txtar"},
		{"DELETE", "/vch/volumes/{name}/snapshots/{snapshot}", (*Server).snapshotRemove, "TestVolumeSnapshots volume_snapshot.txtar"},
		{"GET", "/vch/volumes/{name}/export", (*Server).volumeExport, "TestVolumeExport volume_export.txtar"},
		{"POST", "/vch/volumes/{name}/import", (*Server).volumeImport, "TestVolumeExport volume_export.txtar"},
		{"POST", "/vch/containers/{id}/volumes", (*Server).volumeAttach, "TestVolumeAttach volume_attach_writable.txtar volume_attach_refused.txtar"},
		{"DELETE", "/vch/containers/{id}/volumes", (*Server).volumeDetach, "TestVolumeAttach volume_attach_writable.txtar volume_attach_busy.txtar"},

		// networks
		{"GET", "/networks", (*Server).networkList, "TestNetworkList"},
		{"GET", "/networks/{id}", (*Server).networkInspect, "TestNetworkInspect"},
		{"POST", "/networks/create", (*Server).networkCreate, "TestNetworkCreate"},
		{"DELETE", "/networks/{id}", (*Server).networkRemove, "TestNetworkRemove"},
		{"POST", "/networks/{id}/connect", (*Server).networkConnect, "TestNetworkConnect"},
		{"POST", "/networks/{id}/disconnect", (*Server).networkDisconnect, "TestNetworkConnect"},
		{"POST", "/networks/prune", (*Server).networkPrune, "TestNetworkPrune"},

		// plugins
		{"GET", "/plugins", nil, ""},
		{"GET", "/plugins/privileges", nil, ""},
		{"GET", "/plugins/{name}/json", nil, ""},
		{"DELETE", "/plugins/{name}", nil, ""},
		{"POST", "/plugins/pull", nil, ""},
		{"POST", "/plugins/create", nil, ""},
		{"POST", "/plugins/{name}/enable", nil, ""},
		{"POST", "/plugins/{name}/disable", nil, ""},
		{"POST", "/plugins/{name}/upgrade", nil, ""},
		{"POST", "/plugins/{name}/push", nil, ""},
		{"POST", "/plugins/{name}/set", nil, ""},

		// swarm: the answer is Moby's of an engine outside a swarm, which clients know how to take
		{"GET", "/swarm", (*Server).noSwarm, ""},
		{"POST", "/swarm/init", (*Server).noSwarm, ""},
		{"POST", "/swarm/join", (*Server).noSwarm, ""},
		{"POST", "/swarm/leave", (*Server).noSwarm, ""},
		{"POST", "/swarm/update", (*Server).noSwarm, ""},
		{"GET", "/swarm/unlockkey", (*Server).noSwarm, ""},
		{"POST", "/swarm/unlock", (*Server).noSwarm, ""},
		{"GET", "/nodes", (*Server).noSwarm, ""},
		{"GET", "/nodes/{id}", (*Server).noSwarm, ""},
		{"DELETE", "/nodes/{id}", (*Server).noSwarm, ""},
		{"POST", "/nodes/{id}/update", (*Server).noSwarm, ""},
		{"GET", "/services", (*Server).noSwarm, ""},
		{"POST", "/services/create", (*Server).noSwarm, ""},
		{"GET", "/services/{id}", (*Server).noSwarm, ""},
		{"DELETE", "/services/{id}", (*Server).noSwarm, ""},
		{"POST", "/services/{id}/update", (*Server).noSwarm, ""},
		{"GET", "/services/{id}/logs", (*Server).noSwarm, ""},
		{"GET", "/tasks", (*Server).noSwarm, ""},
		{"GET", "/tasks/{id}", (*Server).noSwarm, ""},
		{"GET", "/tasks/{id}/logs", (*Server).noSwarm, ""},
		{"GET", "/secrets", (*Server).noSwarm, ""},
		{"POST", "/secrets/create", (*Server).noSwarm, ""},
		{"GET", "/secrets/{id}", (*Server).noSwarm, ""},
		{"DELETE", "/secrets/{id}", (*Server).noSwarm, ""},
		{"POST", "/secrets/{id}/update", (*Server).noSwarm, ""},
		{"GET", "/configs", (*Server).noSwarm, ""},
		{"POST", "/configs/create", (*Server).noSwarm, ""},
		{"GET", "/configs/{id}", (*Server).noSwarm, ""},
		{"DELETE", "/configs/{id}", (*Server).noSwarm, ""},
		{"POST", "/configs/{id}/update", (*Server).noSwarm, ""},
	}
}
