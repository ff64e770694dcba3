// Command peer runs the layer manager of Aos 8 once on a working directory, as its service manager does
// when it starts and is told the desired layers, and prints what it then says of its layers.
//
//	peer aos_servicemanager.cfg desired.json
package main

import (
	"encoding/json"
	"os"
	"path/filepath"

	"github.com/aosedge/aos_common/aostypes"
	log "github.com/sirupsen/logrus"

	"github.com/aosedge/aos_servicemanager/config"
	"github.com/aosedge/aos_servicemanager/database"
	"github.com/aosedge/aos_servicemanager/layermanager"
)

func main() {
	settings, err := config.New(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}

	storage, err := database.New(filepath.Join(settings.WorkingDir, "servicemanager.db"),
		settings.Migration.MigrationPath, settings.Migration.MergedMigrationPath)
	if err != nil {
		log.Fatal(err)
	}
	defer storage.Close()

	manager, err := layermanager.New(settings, storage)
	if err != nil {
		log.Fatal(err)
	}
	defer manager.Close()

	document, err := os.ReadFile(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}

	var desired []aostypes.LayerInfo
	if err := json.Unmarshal(document, &desired); err != nil {
		log.Fatal(err)
	}

	if err := manager.ProcessDesiredLayers(desired); err != nil {
		log.Fatal(err)
	}

	layers, err := storage.GetLayersInfo()
	if err != nil {
		log.Fatal(err)
	}

	if err := json.NewEncoder(os.Stdout).Encode(layers); err != nil {
		log.Fatal(err)
	}
}
